/* All windows lie in the image. */
static void average_pool_u8(const uint8_t *x, const int32_t *by, const uint8_t *shift, uint8_t *y, const window *s,
                            const range *r)
{
    const int32_t planes = s->n * s->in;
    int32_t c, p, q, k, l;
    for (c = 0; c < planes; c++, x += (size_t)s->h * s->w)
        for (p = 0; p < s->oh; p++)
            for (q = 0; q < s->ow; q++) {
                int32_t sum = 0;
                for (k = 0; k < s->kh; k++)
                    for (l = 0; l < s->kw; l++)
                        sum += x[(size_t)(p * s->sh + k * s->dh) * s->w + q * s->sw + l * s->dw] - r->zero;
                *y++ = ranged((int64_t)sum * *by, *shift, r);
            }
}
