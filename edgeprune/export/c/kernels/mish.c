static float mish(float v)
{
    return v * tanhf(softplus(v));
}
