/* value / 2^shift to the nearest integer, in the range of what is written. */
static uint8_t ranged(int64_t value, int32_t shift, const range *r)
{
    const int64_t half = (int64_t)1 << (shift - 1);
    const int64_t q = (value < 0 ? -((half - value) >> shift) : (value + half) >> shift) + r->out;
    return (uint8_t)(q < r->low ? r->low : q > r->high ? r->high : q);
}
