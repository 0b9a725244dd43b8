/* A scale and a shift for each channel of (outer, channels, inner). */
static void affine_f32(const float *x, const float *scale, const float *shift, float *y, int32_t outer,
                       int32_t channels, int32_t inner)
{
    int32_t o, c, i;
    for (o = 0; o < outer; o++)
        for (c = 0; c < channels; c++)
            for (i = 0; i < inner; i++)
                *y++ = *x++ * scale[c] + shift[c];
}
