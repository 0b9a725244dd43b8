static void load_i32(const int32_t *x, int32_t *y, int32_t n)
{
    int32_t i;
    for (i = 0; i < n; i++)
        put_whole(y + i, whole(x + i));
}
