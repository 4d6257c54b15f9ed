/* Velocity windows: blocks, index, arithmetic. Rules and layout: panes.h. */
#include "panes.h"
