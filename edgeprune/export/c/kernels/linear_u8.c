/* (rows, in) to (rows, out) by weights (out, in). */
static void linear_u8(const uint8_t *x, const int8_t *weights, const int32_t *bias, const int32_t *by,
                      const uint8_t *shift, uint8_t *y, int32_t rows, int32_t in, int32_t out, const range *s)
{
    const int32_t zero = s->zero;
    int32_t r, o, i;
    for (r = 0; r < rows; r++, x += in)
        for (o = 0; o < out; o++) {
            const int8_t *w = weights + (size_t)o * in;
            int32_t sum = bias[o];
            for (i = 0; i < in; i++)
                sum += (x[i] - zero) * w[i];
            *y++ = ranged((int64_t)sum * by[o], shift[o], s);
        }
}
