/* The rows of (outer, size, inner) at these places. */
static void gather_f32(const float *x, const int32_t *places, float *y, int32_t outer, int32_t size, int32_t count,
                       int32_t inner)
{
    int32_t o, r, i;
    for (o = 0; o < outer; o++, x += (size_t)size * inner)
        for (r = 0; r < count; r++)
            for (i = 0; i < inner; i++)
                *y++ = x[(size_t)places[r] * inner + i];
}
