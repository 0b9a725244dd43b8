/* (n, in, h, w) to (n, out, oh, ow) by weights (out, in / groups, kh, kw), each number spread over a window. */
static void conv_transpose_f32(const float *x, const float *weights, const float *bias, float *y, const window *s)
{
    const int32_t into = s->in / s->groups, of_group = s->out / s->groups;
    int32_t n, o, p, q, i, k, l;
    for (n = 0; n < s->n; n++)
        for (o = 0; o < s->out; o++) {
            const float *image = x + ((size_t)n * s->in + (size_t)(o / of_group) * into) * s->h * s->w;
            const float *filter = weights + (size_t)o * into * s->kh * s->kw;
            for (p = 0; p < s->oh; p++)
                for (q = 0; q < s->ow; q++) {
                    float sum = bias[o];
                    for (k = 0; k < s->kh; k++) {
                        const int32_t row = source_of(p + s->ph - k * s->dh, s->sh, s->h);
                        for (l = 0; row >= 0 && l < s->kw; l++) {
                            const int32_t column = source_of(q + s->pw - l * s->dw, s->sw, s->w);
                            for (i = 0; column >= 0 && i < into; i++)
                                sum += image[((size_t)i * s->h + row) * s->w + column] *
                                       filter[((size_t)i * s->kh + k) * s->kw + l];
                        }
                    }
                    *y++ = sum;
                }
        }
}
