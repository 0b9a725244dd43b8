/* (outer, size, inner) to (outer, inner). */
static void mean_u8(const uint8_t *x, const int32_t *by, const uint8_t *shift, uint8_t *y, int32_t outer, int32_t size,
                    int32_t inner, const range *s)
{
    int32_t o, i, r;
    for (o = 0; o < outer; o++, x += (size_t)size * inner)
        for (i = 0; i < inner; i++) {
            int32_t sum = 0;
            for (r = 0; r < size; r++)
                sum += x[(size_t)r * inner + i] - s->zero;
            *y++ = ranged((int64_t)sum * *by, *shift, s);
        }
}
