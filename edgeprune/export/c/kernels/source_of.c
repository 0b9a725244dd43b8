/* The number whose window has a place, with steps between windows, of so many numbers; -1 where none has. */
static int32_t source_of(int32_t place, int32_t step, int32_t size)
{
    return place < 0 || place % step || place / step >= size ? -1 : place / step;
}
