/* The rows of (outer, size, inner) that ids mean. */
static void lookup_f32(const float *x, const int32_t *ids, float *y, int32_t outer, int32_t size, int32_t count,
                       int32_t inner)
{
    int32_t o, r, i;
    for (o = 0; o < outer; o++, x += (size_t)size * inner)
        for (r = 0; r < count; r++) {
            const int32_t at = row_of(whole(ids + r), size);
            for (i = 0; i < inner; i++)
                *y++ = x[(size_t)at * inner + i];
        }
}
