/* The row of a table that an id means: negative ones count from its end, and none is beyond it. */
static int32_t row_of(int32_t id, int32_t size)
{
    id = id < 0 ? id + size : id;
    return id < 0 ? 0 : id < size ? id : size - 1;
}
