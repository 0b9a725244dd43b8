static void cast_u8_f32(const uint8_t *x, float *y, int32_t n)
{
    int32_t i;
    for (i = 0; i < n; i++)
        y[i] = (float)x[i];
}
