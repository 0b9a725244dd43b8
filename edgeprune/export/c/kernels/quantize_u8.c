static void quantize_u8(const float *x, uint8_t *y, int32_t n, float scale, int32_t zero, int32_t low, int32_t high)
{
    int32_t i;
    for (i = 0; i < n; i++) {
        const float q = rintf(x[i] / scale) + (float)zero;
        y[i] = (uint8_t)(q >= (float)high ? high : q >= (float)low ? (int32_t)q : low);
    }
}
