"""Parts that several methods use: sums of products, ranks, thinning. Knows no method."""
