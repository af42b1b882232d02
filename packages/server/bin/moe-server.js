#!/usr/bin/env node
// Not compiled, so that npm can link the command in a clone before anything is built.
import '../dist/src/bin.js';
