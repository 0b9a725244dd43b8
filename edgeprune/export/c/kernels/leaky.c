static float leaky(float v, float slope)
{
    return v < 0.0f ? v * slope : v;
}
