static float gelu_tanh(float v)
{
    return 0.5f * v * (1.0f + tanhf(0.797884561f * (v + 0.044715f * v * v * v)));
}
