/** An entry that ends before it has said a word. */
process.exit(3);
