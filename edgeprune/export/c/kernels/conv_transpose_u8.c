/* (n, in, h, w) to (n, out, oh, ow) by weights (out, in / groups, kh, kw), each number spread over a window. */
static void conv_transpose_u8(const uint8_t *x, const int8_t *weights, const int32_t *bias, const int32_t *by,
                              const uint8_t *shift, uint8_t *y, const window *s, const range *r)
{
    const int32_t into = s->in / s->groups, of_group = s->out / s->groups;
    const int32_t zero = r->zero;
    int32_t n, o, p, q, i, k, l;
    for (n = 0; n < s->n; n++)
        for (o = 0; o < s->out; o++) {
            const uint8_t *image = x + ((size_t)n * s->in + (size_t)(o / of_group) * into) * s->h * s->w;
            const int8_t *filter = weights + (size_t)o * into * s->kh * s->kw;
            for (p = 0; p < s->oh; p++)
                for (q = 0; q < s->ow; q++) {
                    int32_t sum = bias[o];
                    for (k = 0; k < s->kh; k++) {
                        const int32_t row = source_of(p + s->ph - k * s->dh, s->sh, s->h);
                        for (l = 0; row >= 0 && l < s->kw; l++) {
                            const int32_t column = source_of(q + s->pw - l * s->dw, s->sw, s->w);
                            for (i = 0; column >= 0 && i < into; i++)
                                sum += (image[((size_t)i * s->h + row) * s->w + column] - zero) *
                                       filter[((size_t)i * s->kh + k) * s->kw + l];
                        }
                    }
                    *y++ = ranged((int64_t)sum * by[o], shift[o], r);
                }
        }
}
