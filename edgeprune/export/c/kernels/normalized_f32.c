/* Each row of (rows, size) less its mean, over its deviation. */
static void normalized_f32(const float *x, float *y, int32_t rows, int32_t size, float epsilon)
{
    int32_t r, i;
    for (r = 0; r < rows; r++, x += size, y += size) {
        float mean = 0.0f, square = 0.0f, scale;
        for (i = 0; i < size; i++)
            mean += x[i];
        mean /= (float)size;
        for (i = 0; i < size; i++)
            square += (x[i] - mean) * (x[i] - mean);
        scale = 1.0f / sqrtf(square / (float)size + epsilon);
        for (i = 0; i < size; i++)
            y[i] = (x[i] - mean) * scale;
    }
}
