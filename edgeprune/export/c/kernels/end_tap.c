/* The tap from which on none lies in the image, of so many. */
static int32_t end_tap(int32_t start, int32_t step, int32_t size, int32_t taps)
{
    const int32_t end = start < size ? (size - start + step - 1) / step : 0;
    return end < taps ? end : taps;
}
