/* Products of matrices (rows, in) by (in, columns), which lie at the steps of a walk. */
static void matmul_f32(const float *a, const float *b, float *y, const walk *s, int32_t rows, int32_t in,
                       int32_t columns)
{
    int32_t i, j, k, l, m, r, c, n;
    for (i = 0; i < s->size[0]; i++)
        for (j = 0; j < s->size[1]; j++)
            for (k = 0; k < s->size[2]; k++)
                for (l = 0; l < s->size[3]; l++)
                    for (m = 0; m < s->size[4]; m++) {
                        const float *u = a + i * s->a[0] + j * s->a[1] + k * s->a[2] + l * s->a[3] + m * s->a[4];
                        const float *v = b + i * s->b[0] + j * s->b[1] + k * s->b[2] + l * s->b[3] + m * s->b[4];
                        for (r = 0; r < rows; r++, u += in)
                            for (c = 0; c < columns; c++) {
                                float sum = 0.0f;
                                for (n = 0; n < in; n++)
                                    sum += u[n] * v[(size_t)n * columns + c];
                                *y++ = sum;
                            }
                    }
}
