/* One direction over (steps, batch, in), whose gates are in the order update, reset, new; the last part of the bias is
   that of the state's product, which is reset. y has all states, of which each is `stride` after the one before. */
static void gru_f32(const float *x, const float *w, const float *r, const float *bias, const float *h0, float *y,
                    const recurrence *s)
{
    int32_t t, b, j, g, i;
    for (t = 0; t < s->steps; t++) {
        const int32_t at = s->reverse ? s->steps - 1 - t : t, before = s->reverse ? at + 1 : at - 1;
        for (b = 0; b < s->batch; b++) {
            const float *row = x + ((size_t)at * s->batch + b) * s->in;
            const float *h = (t ? y + (size_t)before * s->stride : h0) + (size_t)b * s->hidden;
            for (j = 0; j < s->hidden; j++) {
                float read[3], kept[3], update, fresh;
                for (g = 0; g < 3; g++) {
                    const size_t unit = (size_t)g * s->hidden + j;
                    read[g] = bias[unit], kept[g] = g < 2 ? 0.0f : bias[unit + s->hidden];
                    for (i = 0; i < s->in; i++)
                        read[g] += row[i] * w[unit * s->in + i];
                    for (i = 0; i < s->hidden; i++)
                        kept[g] += h[i] * r[unit * s->hidden + i];
                }
                update = sigmoid(read[0] + kept[0]);
                fresh = tanhf(read[2] + sigmoid(read[1] + kept[1]) * kept[2]);
                y[(size_t)at * s->stride + (size_t)b * s->hidden + j] = (1.0f - update) * fresh + update * h[j];
            }
        }
    }
}
