/* (rows, in) to (rows, out) by weights (out, in). */
static void linear_f32(const float *x, const float *weights, const float *bias, float *y, int32_t rows, int32_t in,
                       int32_t out)
{
    int32_t r, o, i;
    for (r = 0; r < rows; r++, x += in)
        for (o = 0; o < out; o++) {
            const float *w = weights + (size_t)o * in;
            float sum = bias[o];
            for (i = 0; i < in; i++)
                sum += x[i] * w[i];
            *y++ = sum;
        }
}
