/* The mean of what lies in the image, or in its padding too; by and shift are those of means of 1, 2, ... numbers. */
static void average_pool_padded_u8(const uint8_t *x, const int32_t *by, const uint8_t *shift, uint8_t *y,
                                   const window *s, const range *r, int padded)
{
    const int32_t planes = s->n * s->in;
    int32_t c, p, q, k, l;
    for (c = 0; c < planes; c++, x += (size_t)s->h * s->w)
        for (p = 0; p < s->oh; p++) {
            const int32_t top = p * s->sh - s->ph, rows = end_tap(top, s->dh, s->h + s->eh, s->kh);
            const int32_t k0 = first_tap(top, s->dh), k1 = end_tap(top, s->dh, s->h, s->kh);
            for (q = 0; q < s->ow; q++) {
                const int32_t left = q * s->sw - s->pw, columns = end_tap(left, s->dw, s->w + s->ew, s->kw);
                const int32_t l0 = first_tap(left, s->dw), l1 = end_tap(left, s->dw, s->w, s->kw);
                const int32_t count = padded ? rows * columns : (k1 - k0) * (l1 - l0);
                int32_t sum = 0;
                for (k = k0; k < k1; k++)
                    for (l = l0; l < l1; l++)
                        sum += x[(size_t)(top + k * s->dh) * s->w + left + l * s->dw] - r->zero;
                *y++ = ranged((int64_t)sum * by[count - 1], shift[count - 1], r);
            }
        }
}
