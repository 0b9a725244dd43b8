/* (n, in, h, w) to (n, out, oh, ow) by weights (out, in / groups, kh, kw); padding is zeros. */
static void conv_f32(const float *x, const float *weights, const float *bias, float *y, const window *s)
{
    const int32_t into = s->in / s->groups, of_group = s->out / s->groups;
    int32_t n, o, p, q, i, k, l;
    for (n = 0; n < s->n; n++)
        for (o = 0; o < s->out; o++) {
            const float *image = x + ((size_t)n * s->in + (size_t)(o / of_group) * into) * s->h * s->w;
            const float *filter = weights + (size_t)o * into * s->kh * s->kw;
            for (p = 0; p < s->oh; p++) {
                const int32_t top = p * s->sh - s->ph;
                const int32_t k0 = first_tap(top, s->dh), k1 = end_tap(top, s->dh, s->h, s->kh);
                for (q = 0; q < s->ow; q++) {
                    const int32_t left = q * s->sw - s->pw;
                    const int32_t l0 = first_tap(left, s->dw), l1 = end_tap(left, s->dw, s->w, s->kw);
                    float sum = bias[o];
                    for (i = 0; i < into; i++)
                        for (k = k0; k < k1; k++) {
                            const float *taps = filter + ((size_t)i * s->kh + k) * s->kw;
                            const float *line = image + ((size_t)i * s->h + top + k * s->dh) * s->w;
                            for (l = l0; l < l1; l++)
                                sum += line[left + l * s->dw] * taps[l];
                        }
                    *y++ = sum;
                }
            }
        }
}
