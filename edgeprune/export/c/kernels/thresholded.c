static float thresholded(float v, float alpha)
{
    return v > alpha ? v : 0.0f;
}
