static float gelu(float v)
{
    return 0.5f * v * (1.0f + erff(v * 0.707106781f));
}
