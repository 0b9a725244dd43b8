/* (outer, size, inner) to (outer, count, inner): each of two numbers, of the upper one by its share. */
static void resize_f32(const float *x, const int32_t *lower, const int32_t *upper, const float *share, float *y,
                       int32_t outer, int32_t size, int32_t count, int32_t inner)
{
    int32_t o, r, i;
    for (o = 0; o < outer; o++, x += (size_t)size * inner)
        for (r = 0; r < count; r++) {
            const float *a = x + (size_t)lower[r] * inner, *b = x + (size_t)upper[r] * inner;
            const float t = share[r];
            for (i = 0; i < inner; i++)
                *y++ = a[i] * (1.0f - t) + b[i] * t;
        }
}
