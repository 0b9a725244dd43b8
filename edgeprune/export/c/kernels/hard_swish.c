static float hard_swish(float v)
{
    return v * lesser(greater(v / 6.0f + 0.5f, 0.0f), 1.0f);
}
