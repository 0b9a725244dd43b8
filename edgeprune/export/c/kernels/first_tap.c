/* The first tap of a window from `start` on that lies in the image. */
static int32_t first_tap(int32_t start, int32_t step)
{
    return start < 0 ? (-start + step - 1) / step : 0;
}
