\echo Use "alter extension honcho update" to load this file. \quit
