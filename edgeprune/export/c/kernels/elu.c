static float elu(float v, float alpha)
{
    return v < 0.0f ? alpha * expm1f(v) : v;
}
