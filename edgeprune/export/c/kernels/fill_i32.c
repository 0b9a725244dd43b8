static void fill_i32(int32_t *y, int32_t n, int32_t value)
{
    int32_t i;
    for (i = 0; i < n; i++)
        put_whole(y + i, value);
}
