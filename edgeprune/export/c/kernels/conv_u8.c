/* (n, in, h, w) to (n, out, oh, ow) by weights (out, in / groups, kh, kw); padding stands for zeros. */
static void conv_u8(const uint8_t *x, const int8_t *weights, const int32_t *bias, const int32_t *by,
                    const uint8_t *shift, uint8_t *y, const window *s, const range *r)
{
    const int32_t into = s->in / s->groups, of_group = s->out / s->groups;
    const int32_t zero = r->zero;
    int32_t n, o, p, q, i, k, l;
    for (n = 0; n < s->n; n++)
        for (o = 0; o < s->out; o++) {
            const uint8_t *image = x + ((size_t)n * s->in + (size_t)(o / of_group) * into) * s->h * s->w;
            const int8_t *filter = weights + (size_t)o * into * s->kh * s->kw;
            for (p = 0; p < s->oh; p++) {
                const int32_t top = p * s->sh - s->ph;
                const int32_t k0 = first_tap(top, s->dh), k1 = end_tap(top, s->dh, s->h, s->kh);
                for (q = 0; q < s->ow; q++) {
                    const int32_t left = q * s->sw - s->pw;
                    const int32_t l0 = first_tap(left, s->dw), l1 = end_tap(left, s->dw, s->w, s->kw);
                    int32_t sum = bias[o];
                    for (i = 0; i < into; i++)
                        for (k = k0; k < k1; k++) {
                            const int8_t *taps = filter + ((size_t)i * s->kh + k) * s->kw;
                            const uint8_t *line = image + ((size_t)i * s->h + top + k * s->dh) * s->w;
                            for (l = l0; l < l1; l++)
                                sum += (line[left + l * s->dw] - zero) * taps[l];
                        }
                    *y++ = ranged((int64_t)sum * by[o], shift[o], r);
                }
            }
        }
}
