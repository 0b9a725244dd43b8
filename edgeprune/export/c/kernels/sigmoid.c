static float sigmoid(float v)
{
    return 1.0f / (1.0f + expf(-v));
}
