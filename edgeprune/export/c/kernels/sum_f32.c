/* (outer, size, inner) to (outer, inner). */
static void sum_f32(const float *x, float *y, int32_t outer, int32_t size, int32_t inner)
{
    int32_t o, i, r;
    for (o = 0; o < outer; o++, x += (size_t)size * inner)
        for (i = 0; i < inner; i++) {
            float sum = 0.0f;
            for (r = 0; r < size; r++)
                sum += x[(size_t)r * inner + i];
            *y++ = sum;
        }
}
