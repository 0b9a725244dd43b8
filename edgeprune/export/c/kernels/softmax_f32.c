/* Along the middle of (outer, size, inner). */
static void softmax_f32(const float *x, float *y, int32_t outer, int32_t size, int32_t inner)
{
    int32_t o, i, r;
    for (o = 0; o < outer; o++, x += (size_t)size * inner, y += (size_t)size * inner)
        for (i = 0; i < inner; i++) {
            float most = -INFINITY, sum = 0.0f;
            for (r = 0; r < size; r++)
                most = greater(most, x[(size_t)r * inner + i]);
            for (r = 0; r < size; r++) {
                const float e = expf(x[(size_t)r * inner + i] - most);
                y[(size_t)r * inner + i] = e;
                sum += e;
            }
            for (r = 0; r < size; r++)
                y[(size_t)r * inner + i] /= sum;
        }
}
