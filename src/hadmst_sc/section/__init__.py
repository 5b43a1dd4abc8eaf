"""What a section is: spots and H&E as arrays on one grid of bins, and the errors that name what is wrong with them."""
