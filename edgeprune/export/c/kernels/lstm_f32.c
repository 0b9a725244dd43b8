/* One direction over (steps, batch, in), whose gates are in the order in, out, forget, cell: y has all states, of
   which each is `stride` after the one before, and c the cells of the step that was last. */
static void lstm_f32(const float *x, const float *w, const float *r, const float *bias, const float *h0, float *y,
                     float *c, const recurrence *s)
{
    int32_t t, b, j, g, i;
    for (t = 0; t < s->steps; t++) {
        const int32_t at = s->reverse ? s->steps - 1 - t : t, before = s->reverse ? at + 1 : at - 1;
        for (b = 0; b < s->batch; b++) {
            const float *row = x + ((size_t)at * s->batch + b) * s->in;
            const float *h = (t ? y + (size_t)before * s->stride : h0) + (size_t)b * s->hidden;
            for (j = 0; j < s->hidden; j++) {
                const size_t place = (size_t)b * s->hidden + j;
                float sums[4];
                for (g = 0; g < 4; g++) {
                    const size_t unit = (size_t)g * s->hidden + j;
                    sums[g] = bias[unit];
                    for (i = 0; i < s->in; i++)
                        sums[g] += row[i] * w[unit * s->in + i];
                    for (i = 0; i < s->hidden; i++)
                        sums[g] += h[i] * r[unit * s->hidden + i];
                }
                c[place] = sigmoid(sums[2]) * c[place] + sigmoid(sums[0]) * tanhf(sums[3]);
                y[(size_t)at * s->stride + place] = sigmoid(sums[1]) * tanhf(c[place]);
            }
        }
    }
}
