static void cast_i32_f32(const int32_t *x, float *y, int32_t n)
{
    int32_t i;
    for (i = 0; i < n; i++)
        y[i] = (float)whole(x + i);
}
