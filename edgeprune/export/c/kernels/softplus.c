static float softplus(float v)
{
    return v > 20.0f ? v : log1pf(expf(v));
}
