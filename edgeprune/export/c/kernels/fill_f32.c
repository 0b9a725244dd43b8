static void fill_f32(float *y, int32_t n, float value)
{
    int32_t i;
    for (i = 0; i < n; i++)
        y[i] = value;
}
