static void max_pool_u8(const uint8_t *x, uint8_t *y, const window *s)
{
    const int32_t planes = s->n * s->in;
    int32_t c, p, q, k, l;
    for (c = 0; c < planes; c++, x += (size_t)s->h * s->w)
        for (p = 0; p < s->oh; p++) {
            const int32_t top = p * s->sh - s->ph;
            const int32_t k0 = first_tap(top, s->dh), k1 = end_tap(top, s->dh, s->h, s->kh);
            for (q = 0; q < s->ow; q++) {
                const int32_t left = q * s->sw - s->pw;
                const int32_t l0 = first_tap(left, s->dw), l1 = end_tap(left, s->dw, s->w, s->kw);
                uint8_t most = 0;
                for (k = k0; k < k1; k++)
                    for (l = l0; l < l1; l++) {
                        const uint8_t one = x[(size_t)(top + k * s->dh) * s->w + left + l * s->dw];
                        most = one > most ? one : most;
                    }
                *y++ = most;
            }
        }
}
