/* Numbers from where x has them to where y has them. */
static void copy_i32(const int32_t *x, int32_t *y, const walk *s)
{
    int32_t i, j, k, l, m;
    for (i = 0; i < s->size[0]; i++)
        for (j = 0; j < s->size[1]; j++)
            for (k = 0; k < s->size[2]; k++)
                for (l = 0; l < s->size[3]; l++) {
                    const int32_t *from = x + i * s->a[0] + j * s->a[1] + k * s->a[2] + l * s->a[3];
                    int32_t *to = y + i * s->b[0] + j * s->b[1] + k * s->b[2] + l * s->b[3];
                    for (m = 0; m < s->size[4]; m++)
                        put_whole(to + m * s->b[4], whole(from + m * s->a[4]));
                }
}
