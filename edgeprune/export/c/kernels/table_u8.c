static void table_u8(const uint8_t *x, const uint8_t *table, uint8_t *y, int32_t n)
{
    int32_t i;
    for (i = 0; i < n; i++)
        y[i] = table[x[i]];
}
