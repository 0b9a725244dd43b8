static float swish(float v, float alpha)
{
    return v * sigmoid(alpha * v);
}
