static void fill_u8(uint8_t *y, int32_t n, uint8_t value)
{
    int32_t i;
    for (i = 0; i < n; i++)
        y[i] = value;
}
