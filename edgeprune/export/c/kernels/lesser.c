static float lesser(float a, float b)
{
    return a != a || a < b ? a : b;
}
