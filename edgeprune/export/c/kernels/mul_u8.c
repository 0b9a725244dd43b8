static void mul_u8(const uint8_t *a, const uint8_t *b, uint8_t *y, const walk *s, const pair *t, const range *r)
{
    int32_t i, j, k, l, m;
    for (i = 0; i < s->size[0]; i++)
        for (j = 0; j < s->size[1]; j++)
            for (k = 0; k < s->size[2]; k++)
                for (l = 0; l < s->size[3]; l++)
                    for (m = 0; m < s->size[4]; m++) {
                        const int32_t u = a[i * s->a[0] + j * s->a[1] + k * s->a[2] + l * s->a[3] + m * s->a[4]];
                        const int32_t v = b[i * s->b[0] + j * s->b[1] + k * s->b[2] + l * s->b[3] + m * s->b[4]];
                        *y++ = ranged((int64_t)((u - t->left) * (v - t->right)) * t->by_left, t->shift, r);
                    }
}
