static void load_u8(const uint8_t *x, uint8_t *y, int32_t n)
{
    int32_t i;
    for (i = 0; i < n; i++)
        y[i] = x[i];
}
