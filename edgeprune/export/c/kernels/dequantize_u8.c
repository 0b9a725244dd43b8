static void dequantize_u8(const uint8_t *x, float *y, int32_t n, float scale, int32_t zero)
{
    int32_t i;
    for (i = 0; i < n; i++)
        y[i] = (float)(x[i] - zero) * scale;
}
