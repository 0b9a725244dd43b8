static float softsign(float v)
{
    return v / (1.0f + fabsf(v));
}
